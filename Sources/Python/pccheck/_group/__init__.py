"""How the state of many ranks is divided among their files, and put together again."""
