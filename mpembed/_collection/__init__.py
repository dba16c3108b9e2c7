"""What an embedding collection is made of."""
