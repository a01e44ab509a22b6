from worker.threads import configure_libraries

configure_libraries()  # before any module imports torch or OpenCV
