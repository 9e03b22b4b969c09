package reaper

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Leftovers names the mounts below dir and the processes that have dir in their environment variable name. A store's bind mount
// of itself is podman's, and is no leftover.
func Leftovers(name, dir string) []string {
	left := slices.DeleteFunc(MountsBelow(dir), func(m string) bool { return strings.HasSuffix(m, "/store/root/overlay") })
	for _, p := range Processes(name, dir) {
		left = append(left, fmt.Sprintf("process %d (%s)", p.PID, p.Command))
	}
	return left
}

// MountsBelow returns the mountpoints below dir, in the order of /proc/self/mountinfo: an inner one after an outer one.
func MountsBelow(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") { // none of these names has a character that is escaped
			found = append(found, fields[4])
		}
	}
	return found
}

// A Process is one that runs.
type Process struct {
	PID     int
	Command string   // with its arguments
	Environ []string // that it was started with
}

// Processes returns those that have name=value in the environment that they were started with, but for the caller and zombies.
func Processes(name, value string) []Process {
	var found []Process
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		env, err := os.ReadFile(path)
		if err != nil || pid == os.Getpid() {
			continue
		}
		vars := strings.Split(string(env), "\x00")
		if !slices.Contains(vars, name+"="+value) {
			continue
		}
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(command) > 0 { // a zombie has none
			found = append(found, Process{pid, string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '})), vars})
		}
	}
	return found
}
