"""From torch objects to a payload."""
