"""The accuracy study: four models, many settings of the tables, paired differences."""
