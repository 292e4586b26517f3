"""Ways to find data weights, one small file each behind one interface (`optim.learners.learner`)."""
