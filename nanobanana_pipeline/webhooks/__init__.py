"""What the provider tells by itself: addresses that only it knows, and an inbox on S3."""
