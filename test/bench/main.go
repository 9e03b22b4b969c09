package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	imgfs := flag.String("imgfs", "bin/imgfs", "the program to measure")
	runs := flag.Int("runs", 5, "how often each is measured")
	images := flag.Int("images", 1000, "how many images the large layout has")
	part := flag.String("part", "all", "all, imgfs, rootfs, lazy or claims")
	serve := flag.String("serve", "", "for the program itself: serve the claims' file system in this way, at the mountpoint that follows")
	flag.Parse()
	if *serve != "" {
		exit(serveClaims(*serve, flag.Arg(0)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, *imgfs, *runs, *images, *part)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func bench(ctx context.Context, imgfs string, runs, images int, part string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts overlays and drops the page cache")
	}
	imgfs, err = filepath.Abs(imgfs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "imgfs-bench-")
	if err != nil {
		return err
	}
	b := &bencher{ctx: ctx, dir: dir, runs: runs}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, p := range []struct {
		name string
		run  func() error
	}{
		{"claims", b.claims},
		{"imgfs", func() error { return b.imgfs(imgfs, images) }},
		{"rootfs", func() error { return b.rootfs(imgfs) }},
		{"lazy", func() error { return b.lazy(imgfs) }},
	} {
		if part != "all" && part != p.name {
			continue
		}
		if err := p.run(); err != nil {
			return err
		}
	}
	return nil
}
