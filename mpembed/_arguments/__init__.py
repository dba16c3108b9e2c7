"""From what a caller passes to checked values and views."""
