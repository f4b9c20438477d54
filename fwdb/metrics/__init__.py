"""What Prometheus gets to see: series, their collection, and the small server."""
