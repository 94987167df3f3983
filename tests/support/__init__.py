"""What tests use and that is no test: ranks, trainings, problems, plugins, and writers of pages."""
