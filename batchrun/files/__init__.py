"""Files, folders and streams of any kind, and the JSON in them. Nothing here knows what a run is."""
