"""From scores to numbers: evaluation, baselines and the leaderboard's submission."""
