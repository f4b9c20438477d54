"""Seals: a chain of Merkle trees over the trail, its verification, and erasure that it survives."""
