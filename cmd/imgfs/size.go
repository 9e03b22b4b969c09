package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a number of bytes on a command line: "10G", "512MiB", "4096". It is a pflag.Value.
type byteSize int64

var sizeUnits = []struct {
	letter string
	shift  uint
}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}}

// Set reads a size. Units are powers of 1024, in either case, with or without "B" or "iB".
func (s *byteSize) Set(text string) error {
	number := strings.ToUpper(strings.TrimSpace(text))
	if trimmed, ok := strings.CutSuffix(number, "B"); ok {
		number = strings.TrimSuffix(trimmed, "I")
	}
	var shift uint
	for _, u := range sizeUnits {
		if trimmed, ok := strings.CutSuffix(number, u.letter); ok {
			number, shift = trimmed, u.shift
			break
		}
	}
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
	if err != nil {
		return errors.New("not a size like 4096, 512M or 10G")
	}
	if n > math.MaxInt64>>shift {
		return fmt.Errorf("%q is too much", text)
	}
	*s = byteSize(n << shift)
	return nil
}

// String returns the size with the largest unit that leaves a whole number.
func (s *byteSize) String() string {
	for _, u := range sizeUnits {
		if n := int64(*s); n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.letter
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type is what help calls the value.
func (*byteSize) Type() string { return "size" }
