"""What every part needs: checks, progress, drawings, files written whole."""
