"""What runs inside the user's training process while it is measured."""
