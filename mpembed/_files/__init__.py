"""Files that are whole after a failure, a kill or a power cut."""
