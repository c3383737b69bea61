"""What a model may use: tools with JSON schemas, each of which says what the user has to allow."""
