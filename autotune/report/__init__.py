"""What a study found, as tables and text. Everything here reads the storage only."""
