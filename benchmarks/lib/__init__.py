"""What the scripts share: data, networks, training, methods, tuning, reports."""
