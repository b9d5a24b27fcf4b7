"""From features to abilities: tasks, attribution to features, necessity and sufficiency."""
