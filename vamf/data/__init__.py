"""Data sets: toy distributions in the plane and images, in an order fixed by the seed."""
