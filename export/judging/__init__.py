"""Holding a file's maps against its teacher's, and finding what broke them."""
