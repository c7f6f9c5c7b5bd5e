"""Speed, traffic, and agreement across libraries and devices; `bench` stands on it."""
