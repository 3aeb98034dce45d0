"""The spine: records, configs, jobs, stores: what every run needs."""
