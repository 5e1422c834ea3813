"""The commands of the `medusa` program, one file each; heavy imports stand inside, so that --help answers at once."""
