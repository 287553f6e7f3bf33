"""Language models: in-process students, and teachers that read annotations or the world."""
