"""What a shard may spend: counters with caps, and reservations in them."""
