"""The offline world: a seeded generator of fictional facts, its teacher and its base reader."""
