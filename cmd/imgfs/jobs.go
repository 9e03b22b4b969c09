package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgfs/imgfs/mount"
)

const (
	// answerTime is how long a mount may take to show its jobs.
	answerTime = 5 * time.Second
	// followEvery is how often the jobs are looked at with --follow.
	followEvery = 300 * time.Millisecond
	// lastLook is how long the last look may take, when the command has been interrupted.
	lastLook = time.Second
)

// jobsOptions is what `imgfs jobs` is asked for.
type jobsOptions struct {
	all    bool
	follow bool
}

func newJobsCommand(a *app) *cobra.Command {
	o := &jobsOptions{}
	cmd := &cobra.Command{
		Use:   "jobs [MOUNTPOINT]",
		Short: "Show running operations",
		Long: `Show the operations that run or wait on the mount at MOUNTPOINT, or on all mounts of this user: on a terminal as a
table, elsewhere as JSON, an object a line. Each is what the file of that number in MOUNTPOINT/jobs says, with the
mountpoint before it. Nothing is printed if there is none.

With --follow they are shown until the command is interrupted, which is its way to end: on a terminal as progress bars,
and a line for each that has ended; elsewhere as a line of JSON for each change. It waits for operations if there are
none, and ends with an error when the mount that was named is gone.

Writing "cancel" to the file of an operation in MOUNTPOINT/jobs cancels it.

` + exitHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("one mountpoint is wanted, not %d", len(args))
			}
			return nil
		},
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
		ValidArgsFunction: completeMount,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(&o.all, "all", "a", false, "those that have ended, too, as far as the mount remembers")
	f.BoolVarP(&o.follow, "follow", "f", false, "show what changes until interrupted")
	return cmd
}

func (o *jobsOptions) run(ctx context.Context, a *app, args []string) error {
	r := &jobReader{all: o.all}
	if len(args) > 0 {
		path, err := mount.Find(args[0])
		if err != nil {
			return fmt.Errorf("reading the jobs of %s: %w", args[0], err)
		}
		r.only = path
	}
	var out jobPrinter = &jobLines{w: a.stdout}
	if isTerminal(a.stdout) {
		if out = (&jobTable{w: a.stdout, mounts: r.only == ""}); o.follow {
			out = newJobBars(a.stdout, r.only == "")
		}
	}
	defer out.close()
	if !o.follow {
		jobs, err := r.read(ctx)
		out.print(jobs)
		return err
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		jobs, err := r.read(ctx)
		if ctx.Err() == nil {
			out.print(jobs)
			if err != nil && r.only != "" {
				return err
			}
		}
		select {
		case <-ctx.Done(): // that is how it ends, after a last look
			last, done := context.WithTimeout(context.WithoutCancel(ctx), lastLook)
			defer done()
			jobs, _ = r.read(last) // a mount that has gone has been told of, or was not there to the last
			out.print(jobs)
			return nil
		case <-tick.C:
		}
	}
}

// A job is a file in jobs/, as far as this command understands it.
type job struct {
	Number    uint32  `json:"number"`
	Operation string  `json:"operation"`
	State     string  `json:"state"`
	Image     string  `json:"image"`
	Reference string  `json:"reference"`
	Duration  float64 `json:"duration"`
	Bytes     int64   `json:"bytes"`
	Total     *int64  `json:"total"`
	Sent      int64   `json:"sent"`
	Rate      int64   `json:"rate"`
	Retries   int     `json:"retries"`
	Waiting   string  `json:"waiting"`
	Error     string  `json:"error"`

	mountpoint string
	text       []byte // all of it
}

// doing is the job's state, for people.
func (j *job) doing() string {
	if j.Waiting != "" {
		return "waiting"
	}
	return j.State
}

func (j *job) over() bool { return j.State != "queued" && j.State != "running" }

// changed says whether something has happened since: time alone is no change.
func (j *job) changed(was *job) bool {
	return j.State != was.State || j.Bytes != was.Bytes || j.Sent != was.Sent || j.Retries != was.Retries || j.Waiting != was.Waiting || j.Error != was.Error ||
		(j.Total == nil) != (was.Total == nil) || j.Total != nil && *j.Total != *was.Total
}
