"""From a model, images and a machine to the file worth deploying: what the tool has, tried, raced and chosen from."""
