"""Tests against libraries of others; `make peer-test` installs those."""
