"""Plans and runs the steps from a source to a bundle; every result is kept in a content-addressed store."""
