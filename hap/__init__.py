"""hap: from a recommender's request logs to a two-tier pre-ranking model in production."""

__version__ = "0.1.0"
