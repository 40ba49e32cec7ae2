"""Coming from another scheduler: its schedules as a file of ours, and what will differ.

A crontab, the job store of APScheduler 3, a Celery beat schedule. What can't be said in a file of ours is
told and left out, never bent. Where both sides know their fires, a year of them is compared, so that a
difference where clocks are changed is known before the first one comes.

Nothing of the other side is changed, and nothing that is read is executed: a job store's pickles are looked
at by `inert`, which makes no object of any class. Only a Celery schedule is code, the user's own, and is
imported.

`imported` is what the importers give back, and the comparison.
"""
