"""What may come in: arguments, environments, parameters, numbers and files. Nothing here knows TRPO."""
