package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/reaper"
)

func TestMain(m *testing.M) {
	reaper.Main()
	os.Exit(m.Run())
}

// reaped makes a directory for temporary files, of which nothing is left, also if the test is killed.
func reaped(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imgfs-tour-")
	if err != nil {
		t.Fatal(err)
	}
	r, err := reaper.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := reaper.Leftovers(reaper.RunVar, dir); len(left) > 0 {
			t.Errorf("left behind: %s", strings.Join(left, "; "))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", dir)
	t.Setenv(reaper.RunVar, dir)
	return dir
}

// The tour works, and is the one in README.md.
func TestTour(t *testing.T) {
	needs.FUSE(t)
	needs.Programs(t, "bash", "jq", "curl", "rsync", "skopeo")
	imgfs := filepath.Join(reaped(t), "imgfs")
	needs.Run(t, "go", "build", "-buildvcs=false", "-tags", "containers_image_openpgp", "-o", imgfs, "../../cmd/imgfs")
	var out bytes.Buffer
	if err := demo(t.Context(), imgfs, &out); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "\nThis is what `make demo` prints.\n")
	text, _, ends := strings.Cut(text, "\n## ")
	if !ends {
		t.Fatal("README.md has no tour, or nothing behind it")
	}
	got, want := lines(out.String()), lines(text)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("from line %d on: make demo prints\n%s\nREADME.md has\n%s", i, strings.Join(tail(got, i), "\n"), strings.Join(tail(want, i), "\n"))
		}
	}
}

func tail(lines []string, i int) []string { return lines[min(i, len(lines)):min(i+5, len(lines))] }

var (
	hexes   = regexp.MustCompile(`\b[0-9a-f]{12,}\b`)
	numbers = regexp.MustCompile(`[0-9]+`)
	months  = regexp.MustCompile(`\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b`)
)

// lines are those of a tour without what differs between machines and days: digests, sizes, times.
func lines(tour string) []string {
	tour = strings.ReplaceAll(tour, strings.TrimRight(os.TempDir(), "/")+"/imgfs-demo-", "/tmp/imgfs-demo-")
	tour = months.ReplaceAllString(numbers.ReplaceAllString(hexes.ReplaceAllString(tour, "H"), "N"), "M")
	all := strings.Split(tour, "\n")
	for i, line := range all {
		all[i] = strings.Join(strings.Fields(line), " ")
	}
	return slices.DeleteFunc(all, func(line string) bool { return line == "" })
}
