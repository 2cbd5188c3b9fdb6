"""Writing files: whole or not at all, through links, into pipes."""
