"""From features to abilities: tasks, attribution to features, and tests of these by ablation."""
