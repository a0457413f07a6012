"""What all chat protocols share: requests, events and the service of one model."""
