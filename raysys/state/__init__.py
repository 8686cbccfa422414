"""What changes by the second: events, people, item changes and the vectors of new texts, in one store."""
