"""`evaluate judge`: answers for official judges, a judge of one's own, win rates."""
