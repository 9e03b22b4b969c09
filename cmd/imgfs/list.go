package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgfs/imgfs/mount"
)

// countTime is how long a mount may take to list its images before the number is left out.
const countTime = 2 * time.Second

func newListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List this user's mounts",
		Long: `List the mounts of this user: where, of what, how many images, and which process serves it ("dead" if that was
killed; imgfs umount and imgfs mount take such a mount away). Nothing is printed if there is none.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd.Context(), a) },
	}
}

func list(ctx context.Context, a *app) error {
	mounts, err := mount.List()
	if err != nil {
		return fmt.Errorf("listing mounts: %w", err)
	}
	if len(mounts) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MOUNTPOINT\tSOURCES\tIMAGES\tPID")
	counts := countImages(ctx, mounts)
	for i, m := range mounts {
		pid := "dead"
		if !m.Dead {
			pid = strconv.Itoa(m.PID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Mountpoint, strings.Join(m.Sources, ", "), counts[i], pid)
	}
	return w.Flush()
}

// countImages asks the mounts for the number of their images, all at once; one that does not answer has "-".
func countImages(ctx context.Context, mounts []mount.State) []string {
	ctx, cancel := context.WithTimeout(ctx, countTime)
	defer cancel()
	counts := make([]string, len(mounts))
	var wg sync.WaitGroup
	for i, m := range mounts {
		counts[i] = "-"
		if m.Dead {
			continue
		}
		answer := make(chan string, 1)
		go func() { // not in wg: whoever reads from a process that hangs may never come back
			names, err := os.ReadDir(filepath.Join(m.Mountpoint, "ids"))
			if err != nil {
				answer <- "-"
				return
			}
			answer <- strconv.Itoa(len(names))
		}()
		wg.Go(func() {
			select {
			case counts[i] = <-answer:
			case <-ctx.Done():
			}
		})
	}
	wg.Wait()
	return counts
}

// completeMount completes a mountpoint of this user.
func completeMount(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	mounts, err := mount.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points, cobra.ShellCompDirectiveNoFileComp
}
