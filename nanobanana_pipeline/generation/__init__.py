"""From missing cells to pictures in the bucket: plan, buy, transfer, account."""
