"""What was done to a model and what it brought, as one tree."""
