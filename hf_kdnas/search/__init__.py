"""Search: which student keeps most of the teacher's quality at the wanted latency."""
