"""The command ``convert`` of ``python -m pccheck``."""
