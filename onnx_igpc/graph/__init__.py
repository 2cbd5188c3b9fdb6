"""The ModelProto, read, looked at, edited, counted and checked."""
