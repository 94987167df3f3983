"""The house itself: arrows between rooms, what is published, licences, and pages that tests write."""
