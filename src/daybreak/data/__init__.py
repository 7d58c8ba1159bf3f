"""Images become views: sources, decoding, surveys, views and the loader."""
