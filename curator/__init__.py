"""Lake Curator: what every domain and every row of a lake is worth for a target."""
