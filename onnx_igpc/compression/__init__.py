"""compress and inspect: the phases in order."""
