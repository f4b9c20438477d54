"""Fashion Wallet's two databases, PostgreSQL and MongoDB, as data frames, charts and reports."""
